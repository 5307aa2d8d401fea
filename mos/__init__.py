"""MoS, Mixture of Shards (arXiv 2410.00938), as PEFT methods and an instruction-tuning harness.

Importing this package registers the methods with PEFT, so that `get_peft_model`,
`PeftModel.from_pretrained` and `AutoPeftModel` know them.
"""
