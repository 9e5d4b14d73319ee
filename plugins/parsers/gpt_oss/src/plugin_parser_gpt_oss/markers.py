"""The special tokens of the Harmony format."""

START, CHANNEL, MESSAGE = "<|start|>assistant", "<|channel|>", "<|message|>"
CONSTRAIN = "<|constrain|>"
CALL, END, RETURN = "<|call|>", "<|end|>", "<|return|>"
TO = "to=functions."
