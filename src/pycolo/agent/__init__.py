"""The packet process of one VM on one host; on its own so that page work never delays packets."""
