"""What outlives the process: files, batches, stored responses, usage; SQLite or PostgreSQL, and a data directory."""
