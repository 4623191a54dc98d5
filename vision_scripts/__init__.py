# SPDX-License-Identifier: Apache-2.0
"""Train image classifiers, from scratch or from a checkpoint, with or without SAM."""
