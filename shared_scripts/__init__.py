# SPDX-License-Identifier: Apache-2.0
"""What the scripts have in common: arguments, results, one run, the demos."""
