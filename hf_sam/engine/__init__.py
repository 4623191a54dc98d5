# SPDX-License-Identifier: Apache-2.0
"""Machinery without mathematics: processes, loss scaling, and method state in checkpoints."""
