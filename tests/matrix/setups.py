# SPDX-License-Identifier: Apache-2.0
"""All set-ups, by name."""

from . import custom, media, text

SETUPS = {**text.SETUPS, **media.SETUPS, **custom.SETUPS}
