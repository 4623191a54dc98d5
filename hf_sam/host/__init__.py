# SPDX-License-Identifier: Apache-2.0
"""Being the guest of a Trainer: its batches, passes, losses, records and logs."""
