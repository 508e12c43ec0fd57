"""The code that the notebooks share, one noun per file, in the order in which data flows.

Nothing here imports from a file further down this list.

    environment            what a Python lacks of what pyproject.toml asks for
    paths                  where things are
    missing                what is not here, said in one sentence
    profiles               the one dial: smoke, laptop, llava-7b, llava-13b
    costs/gpus             memory and speed of GPUs, by name or as found here
    costs/shapes           the sizes of a LLaVA, and how many parameters are where
    costs/arithmetic       tokens -> FLOPs and bytes of training and generation
    provenance             where a result comes from: commit, packages, machine
    runs                   results on disk, written once, whole or not at all
    progress               one line per step, with the time that is left
    journal                what was said so far, for an evaluation that was killed
    claims                 what a notebook claims, and whether it held
    pictures               image files, opened with care
    discretion             what may be shown of real data: no harmful picture, no harmful answer
    dataset_problems       what is wrong with a dataset folder, on one screen or in a list
    dataset_records        SafeEraser's format: records, and their sets of pairs
    dataset_overlap        what train and val share
    dataset_paths          where a picture is that a record names
    dataset_check          the values of a dataset's files, checked one by one
    dataset_read           a dataset folder -> records, all or what is left of them
    dataset_report         what was read, beside what the paper says
    dataset                all of this by one name, and a command that checks a folder
    dataset_export         the same sets through `datasets`, with a card
    iconworld_words        the small picture world's things, words and wordings
    iconworld              a small picture world that writes this format
    sources                where a model or dataset comes from: a folder, or the hub
    model_check            what can be wrong with a model's folder
    model                  LLaVA and its processor, loaded or built, with LoRA
    attention              packed rows without a dense mask, where the GPU can skip what is not seen
    merged                 a model with its adapter merged, for other programs
    batching               one image with all its questions in one row
    features               the tower's features of a dataset, on disk
    losses                 terms as tensors -> one number; a method is a row of weights
    quirks                 what the official code does and the paper does not say
    released               how the released models came to be
    pretrain               from nothing to a small LLaVA
    lessons                which rows a step of unlearning sees
    unlearn                the training loop
    generate               answers, in batches
    vllm_engine            the same answers by vLLM (an extra)
    judging/verdicts       what a judge is given and what it says
    judging/plain          texts of any script made comparable, and their words
    judging/refusal_rule   whether an answer is a refusal, without a judge
    judging/world_rule     IconWorld's answers labelled by parsing, strictly and leniently
    judging/known_answers  answers whose verdict a person has written down
    judging/prompts        what a model is asked about an answer, in our own words
    judging/guard_prompts  how a guard model is asked and read
    judging/cache          a judge's verdicts and what they cost, on disk
    judging/transport      one POST to a judge's server, whole within its time
    judging/limits         how a judge's server is reached, how fast, and for how much
    judging/replies        what a server's response says
    judging/local          a local instruction model or guard as a judge
    judging/server         any OpenAI-compatible server as a judge
    judges                 answer -> label, by the judge of one's choice
    rouge                  ROUGE-L of an answer, in any script
    metrics                labels -> ASR, RR, ROUGE-L, SARR, specificity
    harness                specificity by seven public benchmarks (an extra)
    evaluate               a model -> every answer of the evaluation, judged
    statistics             rates -> intervals and paired differences
    judging/agreement      two judges' verdicts -> Cohen's kappa
    engines/agenda         what is still to be made, and who makes it
    engines/workers        pieces of work side by side on this machine's GPUs or cores
    engines/ray_nodes      what Ray's tasks do on their machines, and how results travel
    engines/ray_engine     pieces of work side by side on a Ray cluster (optional)
    engines                which of the two, and what it has to work with
    memory                 running out of memory, turned into advice
    origins                the dataset, the original model, its tower's features
    recipes                its answers, and the result of every unlearning run
    specificity            the benchmarks' values of every model (an extra)
    experiments            every run that the chapters need, as steps in the run store
    costs/workload         a real profile's training rows and answers, counted or assumed
    costs/estimate         what every step of a real profile costs, and what does not fit
    tables                 tidy frame -> CSV, Markdown, LaTeX
    plot_parts             what the figures share: colours, bars, axes
    plots                  tidy frame -> figure
    gallery                picture, question, answer before, answer after
    chapters               the notebooks: found, fingerprinted, executed
    leaks                  harmful material of real data in what is to be published
    options                what follows ./reproduce.sh, checked
    readme                 README.md's generated blocks: figures, costs, tables
    publish                a run's notebooks and figures, copied to where readers find them
    pipeline               all of it in one command
"""
