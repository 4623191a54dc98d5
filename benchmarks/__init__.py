# SPDX-License-Identifier: Apache-2.0
"""What the methods cost and what they bring, measured: one command per published table."""
