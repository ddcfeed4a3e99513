"""The DuckDB store's schema, as SQL to be run forward in order; a number, once released, never changes.

What the list and the summary ask for is kept on the conversation, so a page reads one narrow table. Times are
UTC without a zone. The big tables have no key: `Batch` keeps ids unique, and an index would cost each load.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE conversations (
        tenant_id VARCHAR NOT NULL,
        id VARCHAR NOT NULL,
        user_id VARCHAR,
        metadata VARCHAR NOT NULL,
        feedback VARCHAR,
        started_at TIMESTAMP NOT NULL,
        last_at TIMESTAMP NOT NULL,
        first_question VARCHAR NOT NULL,
        last_answer VARCHAR NOT NULL,
        messages INTEGER NOT NULL,
        positive INTEGER NOT NULL,
        neutral INTEGER NOT NULL,
        negative INTEGER NOT NULL,
        first_seq BIGINT NOT NULL,
        last_seq BIGINT NOT NULL,
        digest VARCHAR NOT NULL
    );
    CREATE TABLE messages (
        tenant_id VARCHAR NOT NULL,
        conversation_id VARCHAR NOT NULL,
        seq BIGINT NOT NULL,
        id VARCHAR NOT NULL,
        role VARCHAR NOT NULL,
        type VARCHAR NOT NULL,
        message VARCHAR NOT NULL,
        rating TINYINT,
        event_timestamp TIMESTAMP NOT NULL,
        metadata VARCHAR NOT NULL,
        name VARCHAR,
        thought VARCHAR,
        input VARCHAR,
        observation VARCHAR
    );
    CREATE TABLE ledger (key VARCHAR PRIMARY KEY);
    """,
)
