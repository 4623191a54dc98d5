# SPDX-License-Identifier: Apache-2.0
"""`hf-sam compare` and `hf-sam report`: does a method help on this task, and at what price?"""
