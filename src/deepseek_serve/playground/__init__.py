"""The page at ``/``: plain HTML, CSS and ES modules under ``page/``, served as they are."""
