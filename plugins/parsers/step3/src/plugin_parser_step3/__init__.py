"""Tool calls and reasoning as Step3 and Step-3.5 write them."""
