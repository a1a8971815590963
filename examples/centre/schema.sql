-- What the consumer writes to, and how to read it. It may be run again at any time.

CREATE TABLE IF NOT EXISTS messages (
    source   text        NOT NULL,  -- /<site>/<box>/<stream>, or /<site>/<box>
    id       text        NOT NULL,  -- the same however often a box sends the message
    type     text        NOT NULL,  -- org.ast-stream.event.begin, .gap, .alert ...; see `refused`
    subject  text,                  -- class of an event, rule of an alert
    time     timestamptz,           -- by the clock of the box; of a few kinds there is none
    data     jsonb       NOT NULL,  -- the message as on the feed of the box
    received timestamptz NOT NULL DEFAULT now(),
    site     text GENERATED ALWAYS AS (split_part(source, '/', 2)) STORED,
    box      text GENERATED ALWAYS AS (split_part(source, '/', 3)) STORED,
    stream   text GENERATED ALWAYS AS (nullif(split_part(source, '/', 4), '')) STORED,
    PRIMARY KEY (source, id)
);
CREATE INDEX IF NOT EXISTS messages_by_time ON messages (type, time);
CREATE INDEX IF NOT EXISTS messages_by_event ON messages (source, (data ->> 'id'), type);

-- One row for each event: what its end says, and while it lasts what its begin says.
-- OFFSET is a word of SQL: write e.offset, or "offset".
CREATE OR REPLACE VIEW events AS
SELECT
    site, box, stream, source,
    data ->> 'id'                        AS event,
    data ->> 'class'                     AS class,
    data ->> 'label'                     AS label,
    (data ->> 'onset')::timestamptz      AS onset,
    (data ->> 'offset')::timestamptz     AS "offset",
    (data ->> 'duration_s')::float       AS duration_s,
    (data ->> 'uncertainty_s')::float    AS uncertainty_s,
    (data ->> 'peak')::float             AS peak,
    (data ->> 'mean')::float             AS mean,
    data ->> 'reason'                    AS reason,
    data ->> 'model'                     AS model,
    time
FROM messages
WHERE type = 'org.ast-stream.event.end'
   OR (type = 'org.ast-stream.event.begin' AND NOT EXISTS (
        SELECT FROM messages AS ending
        WHERE ending.source = messages.source
          AND ending.data ->> 'id' = messages.data ->> 'id'
          AND ending.type = 'org.ast-stream.event.end'));

-- Audio that is lost for good.
CREATE OR REPLACE VIEW gaps AS
SELECT
    site, box, stream, source,
    (data ->> 'time')::timestamptz       AS began,
    (data ->> 'duration_s')::float       AS duration_s,
    (data ->> 'samples')::bigint         AS samples,
    data ->> 'reason'                    AS reason,
    time
FROM messages
WHERE type = 'org.ast-stream.gap';

-- One row for each alert, as its newest message says.
CREATE OR REPLACE VIEW alerts AS
SELECT DISTINCT ON (source, data ->> 'id')
    site, box, source,
    data ->> 'id'                        AS alert,
    data ->> 'rule'                      AS rule,
    data ->> 'severity'                  AS severity,
    data ->> 'state'                     AS state,
    data -> 'group'                      AS "group",
    (data ->> 'started')::timestamptz    AS started,
    (data ->> 'fired')::timestamptz      AS fired,
    (data ->> 'resolved')::timestamptz   AS resolved,
    data -> 'events'                     AS events,
    time
FROM messages
WHERE type LIKE 'org.ast-stream.alert.%'
ORDER BY source, data ->> 'id', time DESC, id DESC;

-- How much of each five minutes of wall time was heard.
CREATE OR REPLACE VIEW coverage AS
SELECT
    site, box, stream, source,
    (data ->> 'from')::timestamptz       AS began,
    (data ->> 'to')::timestamptz         AS ended,
    (data ->> 'heard')::float            AS heard,  -- of 1
    data -> 'seconds'                    AS seconds,
    data -> 'reasons'                    AS reasons
FROM messages
WHERE type = 'org.ast-stream.coverage';

-- What a box no longer had when it could have sent it: the only messages that are missing here.
CREATE OR REPLACE VIEW lost AS
SELECT
    site, box, source,
    data ->> 'from'                      AS kind,
    (data ->> 'count')::bigint           AS count,
    data ->> 'reason'                    AS reason,
    received
FROM messages
WHERE type = 'org.ast-stream.lost';

-- Messages that could not be read, with their bytes: kept, so that they do not come again for ever.
CREATE OR REPLACE VIEW refused AS
SELECT source AS topic, data ->> 'why' AS why, data ->> 'body_base64' AS body_base64, received
FROM messages
WHERE type = 'refused';
