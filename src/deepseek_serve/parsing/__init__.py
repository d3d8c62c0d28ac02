"""What a model's text means: what it thinks, what it says, and the calls it makes; one file per format."""
