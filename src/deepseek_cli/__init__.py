"""The `deepseek` command, one file per subcommand."""
