"""The reference: an OpenAPI description, made of the types that requests and answers really have."""
