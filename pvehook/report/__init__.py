"""What people look at: terminal, page, JSON, pictures."""
