-- role: whether a role exists
SELECT FROM pg_roles WHERE rolname = %(role)s
