"""Dialogues from the batch APIs of clouds, which take files of requests and give files of answers later.

OUT/batch/write-0001/requests-00001.jsonl   what `batch write` wrote: requests in OpenAI's batch format
OUT/batch/answers.sqlite                    what `batch read` has read: one answer for each `custom_id`

A dialogue needs an answer a turn, and more attempts if one is malformed. So `write` replays each dialogue with the
answers that are there, and writes the first request that has none; `read` adds answers, and commits the shards whose
dialogues are complete. Nothing else is kept: a request without an answer is written again by the next `write`.

write.py     `batch_write`
read.py      `batch_read`
replay.py    an engine that answers from the stored answers
answers.py   the stored answers
"""
