"""Nagaya behind the interfaces of other people's libraries. Each needs its extra and is imported when it is used."""
