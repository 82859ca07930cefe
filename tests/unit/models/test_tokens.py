"""The token estimate: honest within its stated error, quick and consistent with itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.kernel.tokens import estimate_tokens, weigh
from nagaya.models.driver import FunctionTool, ModelRequest, ToolCall, Turn
from nagaya.models.tokens import estimate_input, estimate_usage

EN = (
    "The roof of the old warehouse was repaired in spring. Kato Roofing replaced forty broken tiles and sealed the "
    "gutters, and the insurance company paid for most of the work. Please send the invoice to the accounting "
    "department before the end of the month, and remind them that the second payment is due in June."
)
JA = (
    "昨年の春、古い倉庫の屋根を修理しました。加藤屋根工業が割れた瓦を四十枚取り替え、雨どいを補修してくれました。"
    "費用の大部分は保険会社が支払いました。請求書は月末までに経理部へ送ってください。二回目の支払いは六月の予定です。"
)
JA_BUSINESS = (
    "東京都渋谷区のオフィスで会議を行います。プロジェクトの進捗状況、来期の予算、サーバーの移行計画について話し合いますので、"
    "資料をご準備ください。ご不明な点がございましたら、遠慮なくお問い合わせください。"
)
MIXED = (
    "Nagaya の API キーは `nk_` で始まります。POST /v1/responses に送ると、SSE で streaming されます。"
    "Error 429 の場合は Retry-After を見て再試行してください。"
)


@pytest.mark.parametrize(
    ("text", "o200k", "within"),
    [(EN, 61, 0.08), (JA, 90, 0.08), (JA_BUSINESS, 69, 0.08), (MIXED, 54, 0.16)],
    ids=["english", "japanese", "japanese-business", "mixed"],
)
def test_the_estimate_is_within_its_stated_error(text: str, o200k: int, within: float) -> None:
    # The counts are those of OpenAI's own o200k_base vocabulary for the same texts.
    assert abs(estimate_tokens(text) - o200k) <= o200k * within


@given(st.text())
def test_pieces_join_to_the_text_and_their_weights_to_its_estimate(text: str) -> None:
    pieces = list(weigh(text))
    assert "".join(piece for piece, _ in pieces) == text
    assert abs(estimate_tokens(text) - sum(weight for _, weight in pieces)) < 1.0001
    assert (estimate_tokens(text) == 0) is (text == "")


@given(st.text(st.sampled_from(" \n\t\x0b\x1cabcdefghABC019_.,!-'\x00~"), max_size=60))
def test_the_quick_way_for_ascii_counts_as_the_slow_one(text: str) -> None:
    slow = estimate_tokens(text + "é") - 0.42
    assert abs(estimate_tokens(text) - slow) < 1.5


def test_a_request_counts_its_calls_images_and_tools() -> None:
    plain = ModelRequest((Turn("user", "hello"),))
    assert estimate_input(plain) == 8
    pictured = ModelRequest((Turn("user", "hello", images=("https://x.example/a.png",)),))
    assert estimate_input(pictured) > 700
    called = ModelRequest((Turn("assistant", "", tool_calls=(ToolCall("c", "look_up", '{"q":"roof"}'),)),))
    assert estimate_input(called) > 10
    tooled = ModelRequest(plain.turns, tools=(FunctionTool("look_up", "Looks up.", {"type": "object"}),))
    assert estimate_input(tooled) > estimate_input(plain) + 8


def test_usage_of_a_dropped_answer_is_estimated_from_what_came() -> None:
    usage = estimate_usage(ModelRequest((Turn("user", "hello"),)), "Kato Roofing", [ToolCall("c", "f", "{}")])
    assert usage.estimated
    assert usage.input_tokens == 8
    assert usage.output_tokens > 5
