"""Tenants: whose request it is, and what that allows.

What lives here: the keys' file (`keys`), the table of tenants that is looked up by key (`table`), limits (`limits`),
what an HTTP request of a tenant holds (`visit`), and the engine as tenants see it (`engine`). What does not: the
order in which the engine serves tenants (`core.scheduler.fairness`), and the admin's key.
"""
