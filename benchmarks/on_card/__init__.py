"""What runs on a machine with a card, in stages of under two minutes each: `python -m benchmarks.on_card`."""
