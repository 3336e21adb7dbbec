"""Real text that every machine has: the standard library's own source, and a page of many scripts.

The page is ours; it is in Unicode's composed form, because tokenizers may normalise to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

SCRIPTS = (
    "English: the quick brown fox, isn't it? It's 12,345.67 - 3.14e-9 (100 %).\n"
    "Français: où est-ce que l'été s'achève ? À Noël, peut-être…\n"
    "Deutsch: Größenwahn, Übermut & Straßenbahnhaltestelle.\n"
    "Español: ¿Dónde está la niña? ¡Aquí!\n"
    "Ελληνικά: ο ήλιος λάμπει. Русский: съешь ещё этих мягких булок.\n"
    "Türkçe: ılık İstanbul. Tiếng Việt: tôi thích phở bò.\n"
    "עברית: שלום עולם. العربية: مرحبا بالعالم، ١٢٣.\n"
    "हिन्दी: नमस्ते दुनिया। ไทย: สวัสดีชาวโลก\n"
    "中文:今天天气很好。日本語:カタカナとひらがな。한국어: 안녕하세요.\n"
    "Emoji: 😀 👩‍💻 🏳️‍🌈 👍🏽 ❤️ 🇪🇺\n"
    "Code: for (int i = 0; i < n; ++i) { a[i] <<= 2; }\t// tab\r\n"
    "        eight spaces, trailing spaces   \n\n\n"
    "Control: \x01\x02\x1b[0m \x7f zero\u200bwidth \u2028 line\n"
)


def python_source(limit: int) -> str:
    """The beginning of a module of the standard library, at most `limit` bytes of UTF-8.

    Cut at the end of a line. Empty where the library's sources are not installed.
    """
    try:
        text = Path(argparse.__file__).read_text(encoding="utf-8")
    except (OSError, TypeError, UnicodeDecodeError):
        return ""
    head = text.encode()[:limit].decode(errors="ignore")
    return head[: head.rfind("\n") + 1]


def texts(limit: int) -> dict[str, str]:
    """The samples by name, those that exist here."""
    both = {"many scripts": SCRIPTS, "Python source": python_source(limit)}
    return {name: text for name, text in both.items() if text}
