"""What the report says of itself, and of figures that are not this project's."""

HEAD = """
# Results

`python report.py` writes this page and its plots from the records in `results/`; each table and plot names the record
and the keys that it shows. Intervals are 95 %, from a bootstrap over utterances (1,000 draws, seed 0;
`conformer/evaluation/scorer.py`). Columns called *measured* are times on machines that other work shared (the records
hold the load): they rank nothing that is close. The other columns do not depend on it. A record that is missing is a
section that says "not run".

## What these data can and cannot show

- **words**: nine command words in strings, real voices; the test split has 75 utterances, 345 words, 30 speakers that
  training never hears. One word is 0.29 % of the error rate. Intervals of several percent overlap: a difference of a
  few words between two rows is no evidence of one. Differences between rows that recognise the same recordings with
  the same weights are real for these recordings, and say little of others.
- **english_small** (the pack libri_mini): read English; 6.9 hours of training, 8 speakers and 99 utterances in test.
  Nearly a tenth of the words in dev never occur in training.
- Neither is LibriSpeech's test-clean, and no figure here may be set beside a published one. Every training ran once,
  with one seed: the intervals hold for the choice of utterances, not for another seed.
- Nothing here was run on a watch, a phone or a microcontroller: their times and energies are predictions of
  `conformer/cost`, and emulated devices are emulations.
"""

LIBRISPEECH = """
## Full LibriSpeech: not run here

    python train.py --config=configs/librispeech.py:small --workdir=runs/small --config.data.source=LibriSpeech
    python eval.py --workdir=runs/small --split=test-clean --streaming --chunk-size=8,16,32 --json=small_clean.json
    python eval.py --workdir=runs/small --split=test-other --streaming --chunk-size=8,16,32 --json=small_other.json

and likewise `medium` and `large`. **The following figures are others', not ours**, and say where such a training should
arrive; all recognise whole utterances with attention to the future, and without a language model. Ours is causal and
streams, which costs accuracy.

| published, word error rate | small | medium | large |
|---|---|---|---|
| Conformer transducer, test-clean / test-other (Gulati et al., 2020) | 2.7 / 6.3 % | 2.3 / 5.0 % | 2.1 / 4.3 % |
| Conformer-CTC, test-other (Kim et al., "Squeezeformer", NeurIPS 2022) | 10.6 % | 7.9 % | 6.6 % |
| NeMo Conformer-CTC, 16,000 h, test-clean / test-other (model cards) | 3.7 / 8.1 % | | 2.2 / 4.3 % |

The second row is the nearest to ours: 960 hours of LibriSpeech, CTC. It follows from that paper's abstract, which gives
7.5, 6.5 and 6.0 % for its own models and says that they are 3.1, 1.4 and 0.6 % better than Conformer-CTC with the same
arithmetic. The cards of the third are `nvidia/stt_en_conformer_ctc_small` and `_large`: more data than LibriSpeech.
"""
