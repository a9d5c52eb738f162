"""The parts of the report that hold no record: how to read it, and figures of others."""

HEAD = """
# Results

How well do the shipped models recognise speech, and what do they cost? `python report.py` writes this page and its
plots
from the records in `results/`. Each table and plot names its record.

- **WER** is the word error rate, **CER** the character error rate, both on the test split unless the title says dev.
- **Intervals** are 95 %, from a bootstrap over utterances: 1,000 draws, seed 0 (`conformer/evaluation/scorer.py`).
- **Measured** columns are times on machines that other programs used too. Small differences between them mean nothing.
- **MACs**, bytes and energy are counted or predicted from the configuration (`docs/execution.md`).
- A table shows the columns that matter most. The record holds all of them.

## What these data can and cannot show

- **words**: strings of nine command words, real voices. The test split has 75 utterances with 345 words, by 30 speakers
  that training never hears. One word is 0.29 % of the error rate, so a difference of a few words between two trainings
  is no evidence.
- **english_small** (the pack libri_mini): read English. Its test split has 99 utterances by 8 speakers. Nearly a tenth
  of
  the words in dev never occur in training.
- **The same weights, the same recordings**: where two rows share both, their difference is real for these recordings.
  It
  says little about others.
- **One seed**: every training ran once. The intervals hold for the choice of utterances, not for another seed.
- **No published figure is comparable**: neither test set is LibriSpeech's test-clean.
- **No device**: nothing here ran on a watch, a phone or a microcontroller. Their times and energies are predictions of
  `conformer/cost`.
"""

LIBRISPEECH = """
## Full LibriSpeech: not run here

    python train.py --config=configs/librispeech.py:small --workdir=runs/librispeech_small
    python train.py --config=configs/librispeech.py:small,mmi --workdir=runs/librispeech_small_mmi
    python eval.py --workdir=runs/librispeech_small_mmi --split=test-clean --streaming --json=small_clean.json
    python eval.py --workdir=runs/librispeech_small_mmi --split=test-other --streaming --json=small_other.json

`medium` and `large` are trained in the same way. [scale_plan.md](scale_plan.md) predicts memory and hours. **The
following figures are others', not ours.** They say where such a training should arrive. These models recognise whole
utterances, attend to the future, and use no language model. Ours is causal and streams, which costs accuracy.

| published word error rate | small | medium | large |
|---|---|---|---|
| Conformer transducer, test-clean / test-other (Gulati et al., 2020) | 2.7 / 6.3 % | 2.3 / 5.0 % | 2.1 / 4.3 % |
| Conformer-CTC, test-other (Kim et al., "Squeezeformer", NeurIPS 2022) | 10.6 % | 7.9 % | 6.6 % |
| NeMo Conformer-CTC, 16,000 h, test-clean / test-other (model cards) | 3.7 / 8.1 % | | 2.2 / 4.3 % |

- The second row is the nearest to ours: CTC, trained on the 960 hours of LibriSpeech. It is computed from that paper's
  abstract, which gives 7.5, 6.5 and 6.0 % for its own models, and says that they are 3.1, 1.4 and 0.6 % better than
  Conformer-CTC with the same arithmetic.
- The third row is from the cards of `nvidia/stt_en_conformer_ctc_small` and `_large`. They learned from more data than
  LibriSpeech.
"""
