# SPDX-License-Identifier: Apache-2.0
"""`hf-sam tune`: a radius and options for this task, chosen on a part of its training set."""
