from __future__ import annotations

from core.bench.datasets import multi_turn, random_prompts, shared_prefix


def test_same_seed_same_requests() -> None:
    assert random_prompts(3, 8, 4, 100, seed=1) == random_prompts(3, 8, 4, 100, seed=1)
    assert random_prompts(3, 8, 4, 100, seed=1) != random_prompts(3, 8, 4, 100, seed=2)


def test_random_prompts_stay_in_the_vocabulary() -> None:
    for conversation in random_prompts(20, 50, 4, vocab_size=10, seed=0):
        assert conversation.token_ids is not None
        assert len(conversation.token_ids) == 50
        assert all(3 <= token < 10 for token in conversation.token_ids)


def test_groups_share_their_prefix_and_nothing_more() -> None:
    requests = shared_prefix(6, groups=2, prefix_len=32, input_len=16, output_len=4, vocab_size=1000, seed=0)
    ids = [request.token_ids or [] for request in requests]
    assert ids[0][:32] == ids[2][:32] == ids[4][:32]
    assert ids[1][:32] == ids[3][:32]
    assert ids[0][:32] != ids[1][:32]
    assert ids[0][32:] != ids[2][32:]


def test_multi_turn_has_the_turns_it_was_asked_for() -> None:
    chats = multi_turn(2, num_turns=3, input_len=5, output_len=7, seed=0)
    assert [len(chat.turns) for chat in chats] == [3, 3]
    assert all(len(turn.split()) == 5 for chat in chats for turn in chat.turns)
