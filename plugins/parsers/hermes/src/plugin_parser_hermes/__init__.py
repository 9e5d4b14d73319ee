"""Tool calls as JSON inside <tool_call> tags, for core."""
