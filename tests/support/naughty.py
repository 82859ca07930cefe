"""Texts that break careless programs. Written for this project."""

from __future__ import annotations

NAUGHTY: tuple[str, ...] = (
    " ", "\t", "\n", "\r\n", " leading and trailing ", "a" * 5000, "0", "-1", "1e309", "NaN", "null", "None", "true", "undefined",
    "שלום עולם", "\u202eright to left\u202c", "\u2066isolated\u2069", "\u200b", "\ufeffbom", "a\u0300\u0301\u0302", "Z̸̡̢͙͈a̸l̷g̶o̴",
    "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇯🇵", "👍🏽", "𠮷野家", "髙﨑", "葛󠄀城", "ｶﾞｷﾞ", "が", "が".encode().decode(), "㍿", "①②③", "ﷺ", "İıŞß",
    "\x00", "nul\x00inside", "\x01\x02\x1b[31mred\x1b[0m", "\x7f", "\x85next line", "\u2028line\u2029paragraph", "\ufffe\uffff", "\U0010ffff",
    "\ue000 private", "\U000e0001 tag", "\u0378 unassigned", "'; DROP TABLE records; --", '" OR 1=1 --', "Robert'); --", "%s%n%x{}{0}",
    "{0.__class__}", "${jndi:ldap://x}", "{{7*7}}", "<%= 7 %>", "../../../etc/passwd", "..\\..\\windows", "file:///etc/passwd", "/dev/null",
    "con", "<script>alert(1)</script>", "<!--", "]]>", "javascript:alert(1)", "`id`", "$(id)", "; ls", "| cat", "a\r\nSet-Cookie: x=1",
    "data: x\n\nevent: y", ": comment\n\n", "[DONE]", '{"a":"b"}', "\\u0000", "\\", '"', "'", "\u00ad", "I\u0307", "ﬁ", "１２３", "²", "٣", "∞",
    "conv_" + "0" * 32, "item_" + "f" * 32, "nk_" + "a" * 60, "Bearer x", "\u180e", "ﾊﾟﾋﾟ", "\ud7ff", "\uf8ff", "ᚠᛇᚻ", "ᄒ\u1161\u11ab",
)  # fmt: skip


def with_another_end(text: str) -> str:
    """The text with another last character: never the same by chance."""
    return text[:-1] + ("0" if text[-1] != "0" else "1")
