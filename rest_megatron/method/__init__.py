"""The method (arXiv 2509.21826) as pure functions of tensors and numbers.

| module              | what                                                 | source                                 |
|---------------------|------------------------------------------------------|----------------------------------------|
| `regions`           | tokens -> format, tool name, parameters, cot         | the paper's section on region weights  |
| `weights`           | entropy -> region weights -> token weights of mean 1 | Lemma 2, Theorem 2, Eq. 9              |
| `token_rules`       | weights that follow from a token by itself           | arXiv 2506.01939 and other neighbours  |
| `curriculum`        | region weights over progress                         | Eq. 16-17                              |
| `feedback`          | region weights over what has been learnt             | ours, on the paper's open question 2   |
| `reference_weights` | the published code's token weights                   | that code                              |
| `advantages`        | scores of a group -> advantages; length penalty      | GRPO, Dr.GRPO, RLOO Eq. 8, DAPO Eq. 13 |
| `importance`        | p_actor / p_engine, truncated; answers masked        | IMPALA, GSPO Eq. 7                     |
| `ratio`             | the clipped loss with one ratio per answer           | GSPO Eq. 7 and 13-14                   |
| `aggregation`       | token losses -> one loss                             | the paper's loss, DAPO, Dr.GRPO        |
| `means`             | means of values that belong together                 |                                        |

The clipped loss of a token, with its dual clip, is specified in `rest_kernels.reference`: PPO Eq. 7, and Eq. 5 of arXiv
1912.09729.
"""
