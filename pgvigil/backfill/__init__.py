"""Long data migrations that finish, can be killed anywhere, and leave the others room."""
