# SPDX-License-Identifier: Apache-2.0
"""Small programs that answer one question each: when, where, along what, how far, on which
examples, and then?
"""
