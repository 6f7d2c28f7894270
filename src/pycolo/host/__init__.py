"""The daemon of one host: its VM copies, where their second copies live, and the API through which all is asked."""
