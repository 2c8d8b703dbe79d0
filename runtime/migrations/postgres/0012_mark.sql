-- A decision of a person says how a task run ends, too, so what was decided is a word and no longer a yes or no.
UPDATE task_run SET decision = replace(replace(decision, '{"is_declined":false', '{"verdict":"approve"'),
    '{"is_declined":true', '{"verdict":"decline"') WHERE decision IS NOT NULL;
