#!/usr/bin/env bash
# The first hour of a user with checkpoints of three codebases, by README and docs alone: bash tests/first_hour.sh FOLDER
# gpc, its extras and openpi-client are those of the python on the PATH. Ends at the first command that fails.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
cd "$1"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
bring="python $repository/tests/first_hour.py"
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
need() { for file in "$@"; do [ -s "$file" ] || { echo "no $file"; exit 1; }; done; }

say "LeRobot's own trainer: two steps, an evaluation, a checkpoint"
$bring lerobot-data data/pusht
lerobot-train --dataset.repo_id=mine/pusht --dataset.root=data/pusht --output_dir=outputs/train/pusht_mine --policy.type=diffusion \
    --policy.push_to_hub=false --policy.device=cpu '--policy.down_dims=[16,32]' --policy.diffusion_step_embed_dim=16 \
    --policy.n_groups=4 --policy.num_inference_steps=5 --policy.n_action_steps=6 \
    '--policy.normalization_mapping={"STATE":"MIN_MAX","ENV":"MIN_MAX","ACTION":"MIN_MAX"}' \
    --batch_size=8 --num_workers=0 --steps=2 --save_freq=2 --eval_freq=2 --eval.n_episodes=1 --eval.batch_size=1 \
    --env.type=pusht --env.obs_type=environment_state_agent_pos --env.episode_length=8 --wandb.enable=false > lerobot.txt 2>&1
lerobot=lerobot:outputs/train/pusht_mine

say "robomimic's own trainer: two epochs of two steps, a rollout and a checkpoint after each"
python "$repository/scripts/collect.py" --task lift --episodes 2 --workers 1 --out data > collect.txt
$bring train-robomimic data/lift.hdf5 exp > robomimic.txt 2>&1
robomimic=robomimic:$(ls exp/lift_diffusion/*/models/model_epoch_1_lift_success_*.pth)

say "Diffusion Policy's own trainer, which PyPI does not have: two of its files"
mkdir -p data/outputs
cp -r "$repository"/tests/data/diffusion-policy-trainer/2026.11.28 data/outputs
unet=$(ls "$PWD"/data/outputs/*/*_train_diffusion_unet_*/checkpoints/epoch=*.ckpt)
transformer=$(ls data/outputs/*/*_train_diffusion_transformer_*/checkpoints/epoch=*.ckpt)

say "listed"
gpc doctor
gpc policies
gpc policies "$lerobot" "$robomimic" "diffusion_policy:$unet"

say "diagnosed"
gpc diagnose "policies=[$lerobot,pusht-flow]" env.n_action_steps=6 demonstrations=data/pusht run_dir=runs/diagnosis
need runs/diagnosis/{diagnosis.json,errors.png}

say "evaluated, each with its own sampler"
gpc evaluate "policies=[$lerobot]" env=pusht sampler=native episodes=2 env.max_steps=24 run_dir=runs/lerobot
gpc evaluate "policies=[diffusion_policy:$transformer]" env=pusht sampler=native episodes=2 env.max_steps=8 run_dir=runs/transformer
gpc evaluate "policies=[$robomimic]" sampler=native episodes=1 env.max_steps=8 run_dir=runs/robomimic
need runs/{lerobot,transformer,robomimic}/{summary.json,report.html,episodes.mp4}

say "composed"
gpc evaluate "policies=[diffusion_policy:$unet,diffusion_policy:$transformer,pusht-flow]" 'weights=[0.3,0.3,0.4]' env=pusht \
    episodes=2 env.max_steps=24 run_dir=runs/three
gpc compare "policies=[$robomimic,lift-flow]" env=lift episodes=2 env.max_steps=8 video=0 run_dir=runs/lift
need runs/{three,lift}/summary.json

say "searched"
gpc search "policies=[$lerobot,pusht-flow]" env.n_action_steps=6 search=grid search.step=0.5 search.episodes=2 \
    report.episodes=2 env.max_steps=24 run_dir=runs/search
need runs/search/{summary.json,report.html,curve.png}

say "served"
names='rename_map={observation.state: agent_pos, observation.environment_state: keypoints}'
gpc serve "policies=[pusht-flow,$lerobot]" 'weights=[0.5,0.5]' "$names" port=8123 > serve.txt 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
until grep -q 'ws://127.0.0.1:8123' serve.txt; do kill -0 $server || { cat serve.txt; exit 1; }; sleep 1; done
$bring client 8123
gpc evaluate 'policies=[remote:ws://127.0.0.1:8123?timeout=60]' env=pusht episodes=1 env.max_steps=8 run_dir=runs/remote
kill -TERM $server; wait $server || [ $? -eq 143 ]

say "deployed on the simulated robot"
gpc deploy robot=simulated "policies=[pusht-flow,$lerobot]" 'weights=[0.5,0.5]' "$names" fps=10 safety.actions=absolute mode=live \
    seconds=3 stitch.n_action_steps=6 run_dir=runs/deployed
need runs/deployed/manifest.json

say "reported"
gpc report runs/lerobot runs/transformer runs/three runs/search
gpc replay runs/three --episode 1 --trust
need study.html
say "done"
