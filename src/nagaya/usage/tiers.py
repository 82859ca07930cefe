"""What each tier costs in a month, in yen. Data only; money is ``Decimal``, never a float."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final, NamedTuple

from nagaya.tenancy.tenant import Tier


class Price(NamedTuple):
    """A monthly fee, and a price for each API call above those it includes (None: all are included)."""

    monthly_jpy: Decimal
    included_calls: int | None = None
    extra_call_jpy: Decimal = Decimal(0)


PRICES: Final[Mapping[Tier, Price]] = {
    Tier.FREE: Price(Decimal(0)),
    Tier.STANDARD: Price(Decimal(1_000), 10_000, Decimal("0.01")),
    Tier.PROFESSIONAL: Price(Decimal(5_000), 50_000, Decimal("0.008")),
    Tier.ENTERPRISE: Price(Decimal(50_000)),
}
