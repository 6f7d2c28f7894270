"""What users do with captures of both copies: compare them after the fact."""
