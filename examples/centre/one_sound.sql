-- One sound at several microphones: events of one class that begin within a stated time of each
-- other on different streams of a group become one row, with the loudest of them first.
--
--   psql -v class=bark -v within='2 seconds' -v streams='/farm/%' -f one_sound.sql
--
-- An event is a sound of its own unless another stream of the group has a higher peak of the same
-- class within that time. Two events of one stream are always two sounds: a dog that barks all night
-- does not become one bark. Clocks of boxes should be right to a part of `within`.

WITH heard AS (
    SELECT * FROM events WHERE class = :'class' AND source LIKE :'streams'
),
pairs AS (
    SELECT one.source, one.event, other.source AS other_source, other.event AS other_event,
           other.onset, other.peak,
           (other.peak, other.source, other.event) > (one.peak, one.source, one.event) AS is_louder
    FROM heard AS one
    JOIN heard AS other
      ON other.source <> one.source
     AND other.onset BETWEEN one.onset - :'within'::interval AND one.onset + :'within'::interval
)
SELECT
    best.onset,
    best.class,
    best.source AS best,                    -- whose clip to listen to
    best.event,
    best.peak,
    1 + count(DISTINCT pairs.other_source)  AS streams,
    least(best.onset, min(pairs.onset))     AS first_onset,
    coalesce(json_agg(json_build_object('source', pairs.other_source, 'event', pairs.other_event)
                      ORDER BY pairs.peak DESC) FILTER (WHERE pairs.event IS NOT NULL), '[]') AS also
FROM heard AS best
LEFT JOIN pairs USING (source, event)
GROUP BY best.onset, best.class, best.source, best.event, best.peak
HAVING NOT coalesce(bool_or(pairs.is_louder), false)
ORDER BY best.onset;
