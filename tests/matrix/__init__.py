# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every kind that transformers trains, each under every method."""
