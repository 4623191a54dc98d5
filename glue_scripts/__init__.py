# SPDX-License-Identifier: Apache-2.0
"""Fine-tune text classifiers on GLUE, with or without SAM."""
