"""The small real Linux guest of the demo and the tests, built from Debian packages."""
