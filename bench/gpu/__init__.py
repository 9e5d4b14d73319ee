"""The workloads W0-W5 on an accelerator, beside other engines: run where these are installed, recorded figures else."""
