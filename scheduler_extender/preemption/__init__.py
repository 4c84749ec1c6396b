# SPDX-License-Identifier: Apache-2.0
"""Making room for pods of higher priority: whom to evict, and for whom the room is kept."""
