"""A load generator against anything that speaks OpenAI's API, and what it measured."""
