"""Properties that hold for any bytes. Hypothesis tries them in CI, atheris for longer: `make fuzz`."""
