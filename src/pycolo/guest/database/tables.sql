CREATE TABLE load_transactions (
    client text NOT NULL,
    number bigint NOT NULL,
    payload text NOT NULL,
    PRIMARY KEY (client, number)
);

CREATE TABLE load_counters (
    client text PRIMARY KEY,
    count bigint NOT NULL
);

