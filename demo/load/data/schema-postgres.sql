-- The same tables as in schema.sql, for PostgreSQL. Both airports of a flight must exist.
CREATE TABLE airports (
    iata TEXT PRIMARY KEY CHECK (length(iata) BETWEEN 3 AND 4),
    name TEXT NOT NULL,
    city TEXT,
    state TEXT,
    country TEXT NOT NULL,
    latitude double precision NOT NULL CHECK (latitude BETWEEN -90 AND 90),
    longitude double precision NOT NULL CHECK (longitude BETWEEN -180 AND 180)
);

CREATE TABLE flights (
    date integer NOT NULL CHECK (date BETWEEN 1010000 AND 12312359), -- MMDDhhmm, of 2001
    delay integer NOT NULL,                                           -- minutes; early is negative
    distance integer NOT NULL CHECK (distance > 0),                   -- miles
    origin TEXT NOT NULL REFERENCES airports (iata),
    destination TEXT NOT NULL REFERENCES airports (iata),
    CHECK (origin <> destination)
);

-- For dirty.csv, which has one row of each kind of badness.
CREATE TABLE bookings (
    code TEXT PRIMARY KEY,
    passenger TEXT NOT NULL,
    origin TEXT NOT NULL REFERENCES airports (iata),
    destination TEXT NOT NULL REFERENCES airports (iata),
    seats integer NOT NULL CHECK (seats BETWEEN 1 AND 9),
    price double precision
);
