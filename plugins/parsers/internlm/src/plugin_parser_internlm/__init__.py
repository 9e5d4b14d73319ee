"""Tool calls of InternLM and Intern-S1, for core."""
