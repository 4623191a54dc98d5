# SPDX-License-Identifier: Apache-2.0
"""Mechanisms without mathematics: exact return, replay, loss scaling, processes, method state."""
