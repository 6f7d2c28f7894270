"""Pure decisions: no clock, no sockets, no asyncio, no logging; time and randomness come in as arguments."""
