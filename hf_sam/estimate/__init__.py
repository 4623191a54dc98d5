# SPDX-License-Identifier: Apache-2.0
"""`hf-sam estimate`: what a method will cost, before anything is trained."""
